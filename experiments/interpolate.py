"""The command `avdvae interpolate`: python experiments/interpolate.py --help"""

from avdvae.programs.interpolate import main

if __name__ == "__main__":
    main()
