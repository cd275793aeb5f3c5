"""The actions of the commands: a module for each, imported when its command runs."""
