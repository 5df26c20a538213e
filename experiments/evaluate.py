"""The command `avdvae evaluate`: python experiments/evaluate.py --help"""

from avdvae.programs.evaluate import main

if __name__ == "__main__":
    main()
