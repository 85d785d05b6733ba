"""ConvEntion (Bairouk et al. 2023, A&A 673, A141) and its fast path."""
