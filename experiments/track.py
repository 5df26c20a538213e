"""The command `avdvae track`: python experiments/track.py --help"""

from avdvae.programs.track import main

if __name__ == "__main__":
    main()
