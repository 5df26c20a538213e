"""The command `avdvae transfer`: python experiments/transfer.py --help"""

from avdvae.programs.transfer import main

if __name__ == "__main__":
    main()
