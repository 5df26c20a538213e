"""The command `avdvae generate`: python experiments/generate.py --help"""

from avdvae.programs.generate import main

if __name__ == "__main__":
    main()
