"""What this node must enforce (calc), as chains (rules), made so in the kernel (dataplane).

Data goes one way: Syncer -> calc.graph.Calculation -> calc.graph.State -> dataplane.driver.Driver, which
renders the state with rules/ and keeps the kernel so. agent.Agent runs that for one configuration
(config.Config); daemon.main() is the process.
"""
