"""`python -m neops_remote_lab` is the program `neops-remote-lab`."""

from neops_remote_lab.cli.main import main

if __name__ == "__main__":
    main()
