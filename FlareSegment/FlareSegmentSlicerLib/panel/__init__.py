"""The panel's sections: widgets only, no numerics."""
