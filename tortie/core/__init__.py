"""What every room may import: errors, the reconciler, back-off, atomic files, logging, tasks.

Nothing here knows Calico, the kernel or a datastore.
"""
