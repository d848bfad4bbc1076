"""Start-up, address autodetection, default pools, supervision, health."""
