"""Small trio tools without domain words."""
