"""`python -m voiceflow.cli`."""

from voiceflow.cli.main import main

main()
