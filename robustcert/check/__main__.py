"""``python -I -m robustcert.check DIR``: its exit status is the verdict's."""

from robustcert.check.isolation import main

if __name__ == "__main__":
    main()
