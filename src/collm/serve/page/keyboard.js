// Keys that work everywhere on the page.

/** `acts`: {stop, fresh, shortcuts, ask, panel}; each returns false where it had nothing to do. */
export function listen(acts) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const chord = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    let done = false;
    if (event.key === "Escape") done = acts.stop() !== false;
    else if (chord && event.shiftKey && key === "o") done = acts.fresh() !== false;
    else if (chord && key === "/") done = acts.shortcuts() !== false;
    else if (chord && key === ".") done = acts.panel() !== false;
    else if (!chord && !event.altKey && !writes(event.target)) {
      if (key === "/") done = acts.ask() !== false;
      else if (key === "?") done = acts.shortcuts() !== false;
    }
    if (done) event.preventDefault();
  });
}

function writes(target) {
  return target instanceof Element && target.closest("input, textarea, select, [contenteditable]") !== null;
}
