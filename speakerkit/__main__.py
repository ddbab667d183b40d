"""``python -m speakerkit`` is the ``speakerkit`` command."""

from speakerkit.cli.main import main

if __name__ == "__main__":
    main()
