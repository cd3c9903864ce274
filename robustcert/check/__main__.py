"""``python -I -m robustcert.check DIR``: status 0 verified, 1 refuted or unproved, 2 unreadable."""

from robustcert.check.isolation import main

if __name__ == "__main__":
    main()
