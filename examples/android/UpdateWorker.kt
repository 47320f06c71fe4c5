package com.example.autoglm

import android.content.Context
import androidx.work.BackoffPolicy
import androidx.work.Constraints
import androidx.work.CoroutineWorker
import androidx.work.ExistingPeriodicWorkPolicy
import androidx.work.NetworkType
import androidx.work.PeriodicWorkRequestBuilder
import androidx.work.WorkManager
import androidx.work.WorkerParameters
import com.chaquo.python.Python
import com.chaquo.python.android.AndroidPlatform
import java.util.concurrent.TimeUnit
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext

/**
 * One step of the update agent, when Android finds the time; phone.py holds the agent.
 *
 * Android may stop the worker at any moment: the SDK goes on at the next one, from the chunk where it was.
 */
class UpdateWorker(context: Context, parameters: WorkerParameters) : CoroutineWorker(context, parameters) {
    override suspend fun doWork(): Result = withContext(Dispatchers.IO) {
        if (!Python.isStarted()) Python.start(AndroidPlatform(applicationContext))
        val phone = Python.getInstance().getModule("phone")
        val kind = phone.callAttr("step", applicationContext.noBackupFilesDir.path).toString()
        if (kind == "failed") Result.retry() else Result.success()
    }

    companion object {
        /** Call once at the start of the app; a second call changes nothing. */
        fun schedule(context: Context) {
            val constraints = Constraints.Builder()
                .setRequiredNetworkType(NetworkType.UNMETERED)
                .setRequiresBatteryNotLow(true)
                .setRequiresStorageNotLow(true)
                .build()
            val work = PeriodicWorkRequestBuilder<UpdateWorker>(6, TimeUnit.HOURS)
                .setConstraints(constraints)
                .setBackoffCriteria(BackoffPolicy.EXPONENTIAL, 30, TimeUnit.SECONDS)
                .build()
            WorkManager.getInstance(context)
                .enqueueUniquePeriodicWork("autoglm-update", ExistingPeriodicWorkPolicy.KEEP, work)
        }
    }
}
