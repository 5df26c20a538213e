"""The command `avdvae demo`: python experiments/demo.py --help"""

from avdvae.programs.demo import main

if __name__ == "__main__":
    main()
