"""What this node must enforce (calc), as chains (rules), made so in the kernel (dataplane)."""
