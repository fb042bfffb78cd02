"""Tables, pictures, comparisons and MLflow."""
