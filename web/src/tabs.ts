// Tabs that work with the arrow keys.

/** Select a tab by click or arrow key; `chosen` gets its index. Returns a function that selects. */
export function tabs(buttons: HTMLElement[], chosen: (index: number) => void): (index: number) => void {
  const select = (index: number): void => {
    buttons.forEach((button, each) => {
      button.setAttribute("aria-selected", String(each === index));
      button.tabIndex = each === index ? 0 : -1;
    });
    chosen(index);
  };
  buttons.forEach((button, index) => {
    button.addEventListener("click", () => select(index));
    button.addEventListener("keydown", (event) => {
      const steps: Record<string, number> = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: -1 };
      const next = steps[event.key];
      if (next === undefined) return;
      event.preventDefault();
      const target = (next + buttons.length) % buttons.length;
      select(target);
      buttons[target]!.focus();
    });
  });
  return select;
}
