"""The command `avdvae import`: python experiments/import_weights.py --help"""

from avdvae.programs.import_weights import main

if __name__ == "__main__":
    main()
