"""RIB, best path, ExaBGP link, kernel routes, status. Knows no datastore."""
