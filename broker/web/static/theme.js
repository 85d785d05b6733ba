// Runs before the first paint, so that a chosen theme does not flash: a module would come too late.
try {
  const theme = localStorage.getItem("theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch {
  // storage is switched off: the system's theme stays
}
