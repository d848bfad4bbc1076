"""What every room may import: errors, the reconciler, back-off, tasks, logging, health, atomic files.

And what several of them show or read alike: HTTP ports and metrics, tables, durations, the node's paths,
who speaks BGP. Nothing here knows a resource of Calico's, the kernel or a datastore.
"""
