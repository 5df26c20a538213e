"""The command `avdvae train`: python experiments/run.py --help"""

from avdvae.programs.train import main

if __name__ == "__main__":
    main()
