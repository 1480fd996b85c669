"""One module for each command of the command line; `cli` lists them and states their rules."""
