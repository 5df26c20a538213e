"""The command `avdvae prepare`: python preprocessing/lips.py --help"""

from avdvae.programs.prepare import main

if __name__ == "__main__":
    main()
