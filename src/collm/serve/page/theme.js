// Runs before the first paint, so that a chosen theme does not flash the other one.
// Not a module: modules wait for the whole page.
(() => {
  const KEY = "collm.theme";
  const ORDER = ["auto", "light", "dark"];
  const root = document.documentElement;

  function chosen() {
    const theme = kept.local.get(KEY);
    return ORDER.includes(theme) ? theme : "auto";
  }

  function apply(theme) {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
  }

  apply(chosen());
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const tell = () => {
      const words = `Theme: ${chosen()}`;
      button.querySelector("span").textContent = words;
      button.querySelector("use").setAttribute("href", `page/icons.svg#theme-${chosen()}`);
    };
    button.addEventListener("click", () => {
      const next = ORDER[(ORDER.indexOf(chosen()) + 1) % ORDER.length];
      kept.local.set(KEY, next);
      apply(next);
      tell();
    });
    tell();
  });
})();
