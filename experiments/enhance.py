"""The command `avdvae enhance`: python experiments/enhance.py --help"""

from avdvae.programs.enhance import main

if __name__ == "__main__":
    main()
