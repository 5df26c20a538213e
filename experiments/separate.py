"""The command `avdvae separate`: python experiments/separate.py --help"""

from avdvae.programs.separate import main

if __name__ == "__main__":
    main()
