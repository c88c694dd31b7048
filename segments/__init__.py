"""What we call a customer, given features and scores."""
