"""What follows from the evidence: bounds, gates, policies, the judge, the state machine, the controller, reports."""
