"""The measured ratios: what vssl costs beside other ways to do the same work, on the same files, in the same minute."""
