"""The command `avdvae control`: python experiments/control.py --help"""

from avdvae.programs.control import main

if __name__ == "__main__":
    main()
