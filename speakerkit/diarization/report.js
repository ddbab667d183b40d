"use strict";
{
  const $ = (id) => document.getElementById(id);
  // Times in milliseconds, confidences in thousandths: {recording, channel, length, speakers, turns: [start, end, who, sure]}
  const data = JSON.parse($("data").textContent);
  const [audio, scroll, track, head, status] = ["audio", "scroll", "track", "head", "status"].map($);
  const names = [...data.speakers];
  const rows = [...document.querySelectorAll("tr[data-turn]")];
  const bars = [...document.querySelectorAll("rect[data-turn]")].sort((a, b) => a.dataset.turn - b.dataset.turn);
  const WIDEST = 8e6; // pixels; browsers lay out no more than about twice that
  const CLOSEST = 300; // pixels a second
  const TICK = 90; // pixels between two at least
  const STEPS = [100, 200, 500, 1e3, 2e3, 5e3, 1e4, 3e4, 6e4, 12e4, 3e5, 6e5, 18e5, 36e5];

  const seconds = (time) => (time / 1000).toFixed(3);

  function clock(time, decimals = 3) {
    const [hours, minutes] = [Math.floor(time / 36e5), Math.floor(time / 6e4) % 60];
    const seconds = ((time % 6e4) / 1000).toFixed(decimals).padStart(decimals ? decimals + 3 : 2, "0");
    return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${seconds}` : `${minutes}:${seconds}`;
  }

  // Zoom: the track is as wide as it takes, everything on it is placed in per cent.

  function drawTicks() {
    const perPixel = data.length / track.clientWidth;
    const step = STEPS.find((each) => each >= TICK * perPixel) ?? Math.ceil((TICK * perPixel) / 36e5) * 36e5;
    const end = Math.min(data.length, (scroll.scrollLeft + scroll.clientWidth) * perPixel);
    const ticks = [];
    for (let at = Math.floor((scroll.scrollLeft * perPixel) / step) * step; at <= end; at += step) {
      const tick = document.createElement("span");
      tick.style.left = `${(100 * at) / data.length}%`;
      tick.textContent = clock(at, step < 1000 ? 1 : 0);
      ticks.push(tick);
    }
    $("axis").replaceChildren(...ticks);
  }

  function zoom(factor, anchor = scroll.clientWidth / 2) {
    const at = (scroll.scrollLeft + anchor) / track.clientWidth;
    const widest = Math.min(WIDEST, (CLOSEST * data.length) / 1000);
    const width = Math.max(scroll.clientWidth, Math.min(widest, track.clientWidth * factor));
    track.style.width = `${(100 * width) / scroll.clientWidth}%`;
    scroll.scrollLeft = at * track.clientWidth - anchor;
    drawTicks();
  }

  $("closer").addEventListener("click", () => zoom(2));
  $("wider").addEventListener("click", () => zoom(0.5));
  $("whole").addEventListener("click", () => zoom(0));
  scroll.addEventListener("scroll", drawTicks);
  scroll.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      zoom(event.deltaY < 0 ? 1.25 : 0.8, event.clientX - scroll.getBoundingClientRect().left);
    },
    { passive: false },
  );
  addEventListener("resize", drawTicks);
  addEventListener("beforeprint", () => zoom(0));
  drawTicks();

  // Playing: a turn that was asked for ends where it ends, all else plays on.

  let asked = null;

  function show() {
    const now = audio.currentTime * 1000;
    head.style.left = `${(100 * now) / data.length}%`;
    $("clock").textContent = clock(now);
    data.turns.forEach(([start, end], index) => {
      const on = start <= now && now < end;
      if (on !== rows[index].classList.contains("on")) {
        rows[index].classList.toggle("on", on);
        bars[index].classList.toggle("on", on);
      }
    });
  }

  function frame() {
    stopAtEnd();
    const place = (audio.currentTime * 1000 * track.clientWidth) / data.length - scroll.scrollLeft;
    if (place < 0 || place > scroll.clientWidth) scroll.scrollLeft += place - scroll.clientWidth / 10;
    show();
    if (!audio.paused) requestAnimationFrame(frame);
  }

  function stopAtEnd() {
    if (!asked || audio.seeking || audio.currentTime * 1000 < asked[1]) return;
    audio.pause();
    asked = null;
  }

  function forgetIfLeft() {
    const now = audio.currentTime * 1000;
    if (asked && (now < asked[0] - 1 || now >= asked[1])) asked = null;
  }

  function complain() {
    status.textContent = "The recording cannot be played: it is not where it was when this page was made.";
  }

  function start() {
    audio.play().catch((error) => error.name === "AbortError" || complain());
  }

  function play(index) {
    asked = data.turns[index];
    audio.currentTime = asked[0] / 1000;
    start();
  }

  function seek(time) {
    asked = null;
    audio.currentTime = Math.max(0, Math.min(data.length, time)) / 1000;
  }

  function playNext(step) {
    const now = audio.currentTime * 1000;
    const after = data.turns.findIndex(([start]) => start > now + 1);
    const before = data.turns.findLastIndex(([start]) => start < now - 500);
    const index = step > 0 ? after : before;
    if (index >= 0) play(index);
  }

  const KEYS = {
    " ": () => (audio.paused ? start() : audio.pause()),
    ArrowLeft: (event) => (event.shiftKey ? playNext(-1) : seek(audio.currentTime * 1000 - 1000)),
    ArrowRight: (event) => (event.shiftKey ? playNext(1) : seek(audio.currentTime * 1000 + 1000)),
    Home: () => seek(0),
    End: () => seek(data.length),
  };
  const ZOOMS = { "+": 2, "=": 2, "-": 0.5, 0: 0 };

  scroll.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in ZOOMS) zoom(ZOOMS[event.key]);
    else if (audio && event.key in KEYS) KEYS[event.key](event);
    else return;
    event.preventDefault();
  });

  if (audio) {
    for (const name of ["timeupdate", "seeking"]) audio.addEventListener(name, show);
    audio.addEventListener("timeupdate", stopAtEnd);
    audio.addEventListener("seeking", forgetIfLeft);
    audio.addEventListener("play", () => requestAnimationFrame(frame));
    audio.addEventListener("error", complain);
    if (audio.error) complain();
    track.addEventListener("click", (event) => {
      const bar = event.target.closest("rect[data-turn]");
      const place = (event.clientX - track.getBoundingClientRect().left) / track.clientWidth;
      if (bar) play(Number(bar.dataset.turn));
      else seek(place * data.length);
    });
    $("turns").addEventListener("click", (event) => {
      const button = event.target.closest("button[data-play]");
      if (button) play(Number(button.dataset.play));
    });
  }

  $("doubtful")?.addEventListener("click", (event) => {
    const pressed = event.target.getAttribute("aria-pressed") !== "true";
    event.target.setAttribute("aria-pressed", String(pressed));
    const doubt = ({ dataset: { turn } }) => data.turns[turn][3] ?? Infinity;
    const sorted = pressed ? [...rows].sort((a, b) => (doubt(a) < doubt(b) ? -1 : Number(doubt(a) > doubt(b)))) : rows;
    $("turns").tBodies[0].replaceChildren(...sorted);
  });

  // Names, and the RTTM that is saved with them: as speakerkit.diarization.formats writes it.

  let unsaved = false;

  function rename(which, typed) {
    names[which] = typed || data.speakers[which];
    unsaved = true;
    status.textContent = new Set(names).size < names.length ? "Speakers of one name are saved as one." : "";
  }

  for (const input of document.querySelectorAll("input[data-name]")) {
    input.addEventListener("input", () => {
      const [which, typed] = [Number(input.dataset.name), input.value.trim()];
      rename(which, typed === input.defaultValue ? "" : typed);
      for (const each of document.querySelectorAll(`[data-speaker="${which}"]`)) {
        each.textContent = typed || input.defaultValue;
      }
    });
    input.addEventListener("change", () => (input.value = input.value.trim() || input.defaultValue));
  }

  function nameField(name) {
    if (name === "<NA>") return "%3CNA>";
    return name.replace(/[^\x21-\x7e]|%(?=[0-9A-Fa-f]{2})/gu, (character) =>
      [...new TextEncoder().encode(character)]
        .map((byte) => `%${byte.toString(16).toUpperCase().padStart(2, "0")}`)
        .join(""),
    );
  }

  function merged() {
    const bySpeaker = new Map();
    for (const [start, end, who, sure] of data.turns) {
      const groups = bySpeaker.get(names[who]) ?? [];
      bySpeaker.set(names[who], groups);
      if (!groups.length || start > groups.at(-1).end) groups.push({ start, end, name: names[who], parts: [] });
      const group = groups.at(-1);
      group.end = Math.max(group.end, end);
      if (sure !== null) group.parts.push([end - start, sure]);
    }
    return [...bySpeaker.values()].flat();
  }

  function byCodePoint(one, other) {
    const [a, b] = [one, other].map((name) => Array.from(name, (character) => character.codePointAt(0)));
    const at = a.findIndex((point, index) => point !== b[index]);
    return at < 0 ? a.length - b.length : a[at] - (b[at] ?? -1);
  }

  function meanOf(parts) {
    const total = parts.reduce((sum, [length]) => sum + length, 0);
    const mean = parts.reduce((sum, [length, sure]) => sum + length * sure, 0) / total;
    return parts.length ? seconds(Math.round(mean)) : "<NA>";
  }

  function rttm() {
    const turns = merged().sort((a, b) => a.start - b.start || a.end - b.end || byCodePoint(a.name, b.name));
    const lines = turns.map(({ start, end, name, parts }) => {
      const times = `${seconds(start)} ${seconds(end - start)}`;
      return `SPEAKER ${data.recording} ${data.channel} ${times} <NA> <NA> ${nameField(name)} ${meanOf(parts)} <NA>\n`;
    });
    return lines.join("");
  }

  $("save").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([rttm()], { type: "text/plain" }));
    link.download = `${data.recording}.rttm`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    unsaved = false;
  });
  addEventListener("beforeunload", (event) => unsaved && event.preventDefault());
}
