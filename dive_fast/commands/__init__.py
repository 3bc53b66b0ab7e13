"""The commands of `dive-fast`, a file a group: thin functions that read options, call rooms and say what was done."""
