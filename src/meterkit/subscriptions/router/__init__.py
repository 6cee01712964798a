"""The billing routes: what each takes, does and answers, whatever serves it."""
