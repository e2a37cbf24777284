"""Starting things: the command line, Ray placement and supervision, model making, scripts."""
