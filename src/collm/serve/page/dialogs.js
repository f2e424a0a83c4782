// Dialogs that ask something. <dialog> keeps the focus inside, and Escape closes it.

import { byId } from "./dom.js";

for (const button of document.querySelectorAll("dialog [data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}

/** Ask before something is lost. Resolves to whether it may. */
export function confirm(question, action) {
  const dialog = byId("confirm");
  byId("confirm-question").textContent = question;
  byId("confirm-yes").textContent = action;
  return answered(dialog, () => dialog.returnValue === "yes");
}

/** Ask for a line of text. Resolves to it, or to null. */
export function askFor(label, value) {
  const dialog = byId("ask-for");
  const input = byId("ask-for-input");
  byId("ask-for-label").textContent = label;
  input.value = value;
  const result = answered(dialog, () => (dialog.returnValue === "yes" ? input.value.trim() : null));
  input.select();
  return result;
}

/** Show a line for a while. */
export function notice(words) {
  const place = byId("notice");
  place.textContent = words;
  place.hidden = false;
  clearTimeout(notice.timer);
  notice.timer = setTimeout(() => (place.hidden = true), 6000);
}

function answered(dialog, read) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(read()), { once: true });
  });
}
