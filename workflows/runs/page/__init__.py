"""The HTML pages of one run or of several: single files that need neither network nor store."""
