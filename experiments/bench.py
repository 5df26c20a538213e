"""The command `avdvae bench`: python experiments/bench.py --help"""

from avdvae.programs.bench import main

if __name__ == "__main__":
    main()
