// Takes the sound of the microphone, plays enhanced samples from a queue, and posts both as they were taken and played.
"use strict"
const PIECE = 512  // samples that are posted at a time
const AHEAD = [0.06, 0.5] // seconds of enhanced sound with which playback begins, and at most after gaps

class Live extends AudioWorkletProcessor {
  constructor() {
    super()
    Object.assign(this, { queue: [], waiting: 0, playing: false, gaps: 0, ahead: AHEAD[0], taking: true, ended: false, done: false })
    this.taken = []  // samples that have not been posted
    this.played = []
    this.port.onmessage = ({ data }) => {
      if (data === "stop") { this.taking = false; this.post({ stopped: true }) }
      else if (data === "end") this.ended = true
      else { this.queue.push(data); this.waiting += data.length }
    }
  }

  post(more) {
    const { waiting, gaps } = this
    const taken = Float32Array.from(this.taken.splice(0)), played = Float32Array.from(this.played.splice(0))
    this.port.postMessage({ taken, played, waiting, gaps, ...more })
  }

  process([[microphone]], [[output]]) {
    if (this.taking && microphone) this.taken.push(...microphone)
    if (this.ended || this.waiting >= this.ahead * sampleRate) this.playing = true
    for (let place = 0; this.playing && place < output.length;) {
      const piece = this.queue[0]
      if (!piece) {
        this.playing = false
        if (!this.ended && this.taking) {
          this.gaps += 1
          this.ahead = Math.min(1.5 * this.ahead, AHEAD[1])
        }
        break
      }
      const now = piece.subarray(0, output.length - place)
      output.set(now, place)
      this.played.push(...now)
      place += now.length
      this.waiting -= now.length
      if (now.length < piece.length) this.queue[0] = piece.subarray(now.length)
      else this.queue.shift()
    }
    const done = this.ended && !this.queue.length
    if (done || this.taken.length >= PIECE || this.played.length >= PIECE) this.post({ done })
    return !done
  }
}
registerProcessor("live", Live)
