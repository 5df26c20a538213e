"""The command `avdvae mixtures`: python experiments/mixtures.py --help"""

from avdvae.programs.mixtures import main

if __name__ == "__main__":
    main()
