"""What the tests share: servers, patience, workers as processes of their own, the model of the API."""
