"""All cases of the truth table."""

from tests.policy import fields, hosts, kubernetes, scenarios, selections

CASES = [*scenarios.cases(), *selections.cases(), *kubernetes.cases(), *hosts.cases(), *fields.cases()]
