"""What can be wrong with recordings and their turns: measures, one row a recording, a turn, a speaker."""
