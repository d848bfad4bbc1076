"""`calicoctl`: the command line, its output and its errors, as scripts written for Calico expect them.

main.run is one command line in, one exit code out."""
