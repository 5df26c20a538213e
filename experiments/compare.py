"""The command `avdvae compare`: python experiments/compare.py --help"""

from avdvae.programs.compare import main

if __name__ == "__main__":
    main()
