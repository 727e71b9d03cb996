"""Documents that clients have stored, so that they can be ranked by their ids."""
