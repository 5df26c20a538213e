"""The command `avdvae claims`: python experiments/claims.py --help"""

from avdvae.programs.claims import main

if __name__ == "__main__":
    main()
