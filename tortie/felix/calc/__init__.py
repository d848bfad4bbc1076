"""Which of the datastore's objects concern this node, as plain data. Pure: no I/O, no clock.

`graph.Calculation` takes the Syncer's updates and keeps a `graph.State`, made of the values in model.py.
"""
